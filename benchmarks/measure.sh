#!/bin/sh
# Every figure of docs/twin-flow.md anew, into docs/results, but the table of variants (twin_ablation.py).
#
#     CFTOOLS_DATA=... benchmarks/measure.sh [truth] [steps] [real] [laws] [age] [speed]
#
# Without arguments all of them. The cohorts are made in a folder that is removed; commands are
# recorded as run in it.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
results=$root/docs/results
PATH=$root/.venv/bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Eight people of IXI whom no bundled weights were trained on.
unseen=IXI012,IXI014,IXI033,IXI051,IXI174,IXI335,IXI383,IXI443

truth() { # name, then options of cf-phantom
    name=$1
    shift
    mkdir "$work/$name"
    cd "$work/$name"
    cf-phantom twins -n 20 --seed 4242 --twin age=+30,-30 "$@"
    cf-edit --age +30,-30 twins edited
    cf-score --truth twins edited --json "$results/truth-$name.json" --force
    cd "$root"
}

for what in ${*:-truth steps real laws age speed}; do
    case $what in
    truth)
        truth normative
        truth altered --law altered
        truth ixi --base "$CFTOOLS_DATA/ixi" --participant-label $unseen
        python "$root/benchmarks/truth_floor.py" --json "$results/truth-floor.json"
        python "$root/benchmarks/truth_floor.py" --law altered --known normative --json "$results/truth-floor-altered.json"
        ;;
    steps) # other subjects than those of truth, as the preset's number of steps was chosen on them
        mkdir "$work/steps"
        cd "$work/steps"
        cf-phantom twins -n 10 --seed 777 --twin age=+30,-30
        for steps in 1 2 3 4; do
            cf-edit --steps $steps --age +30,-30 twins edited-$steps
            cf-score --truth twins edited-$steps --json "$results/steps-$steps.json" --force
        done
        cd "$root"
        ;;
    real) python "$root/benchmarks/real_ageing.py" "$CFTOOLS_DATA" --json "$results/real-ageing.json" ;;
    laws)
        python "$root/benchmarks/consistency.py" "$CFTOOLS_DATA"/oasis/sub-1107/anat/*_T1w.nii.gz \
            "$CFTOOLS_DATA"/oasis/sub-1119/anat/*_T1w.nii.gz "$CFTOOLS_DATA"/oasis/sub-1012/anat/*_T1w.nii.gz \
            --json "$results/consistency.json"
        ;;
    speed) python "$root/benchmarks/speed.py" --runs 3 --json "$results/speed.json" ;;
    age) python "$root/benchmarks/age_model.py" "$CFTOOLS_DATA" --json "$results/age-model.json" ;;
    *)
        echo "measure.sh: $what: truth, steps, real, laws, age or speed" >&2
        exit 2
        ;;
    esac
done
