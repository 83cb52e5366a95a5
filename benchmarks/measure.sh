#!/bin/sh
# Every figure of docs/twin-flow.md and docs/latent-diffusion.md anew, into docs/results, but the table of variants
# (twin_ablation.py).
#
#     CFTOOLS_DATA=... benchmarks/measure.sh [truth] [steps] [real] [laws] [age] [speed] [engine]
#         [autoencoder] [inversion] [latent] [volumes] [diagnosis] [heads] [readers] [pairs]
#
# Without arguments all of them. The cohorts are made in a folder that is removed; commands are recorded as run in it.
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

for what in ${*:-truth steps real laws age speed engine autoencoder inversion latent volumes diagnosis heads readers pairs}; do
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
    readers) # of age and sex, on people that no weights saw and on real scans
        mkdir "$work/readers"
        cd "$work/readers"
        cf-phantom normative -n 24 --seed 4242
        cf-phantom altered -n 24 --seed 4242 --law altered
        for set in normative altered "$CFTOOLS_DATA/oasis"; do
            cf-score "$set" --metric age,sex --json "$results/readers-$(basename "$set").json" --force
        done
        python "$root/benchmarks/sex_ceiling.py" --reader score-sex-2mm --json "$results/sex-reader.json"
        cf-score "$CFTOOLS_DATA/ixi" --participant-label $unseen --metric age,sex --json "$results/readers-ixi.json" --force
        # All of them: whoever gave an anatomy gave it as a woman and as a man.
        cf-score "$CFTOOLS_DATA/ixi" --metric sex --json "$results/readers-ixi-all.json" --force
        sed -i "s|$CFTOOLS_DATA|\$CFTOOLS_DATA|g" "$results"/readers-*.json # no folder of this machine
        cd "$root"
        ;;
    pairs) python "$root/benchmarks/ms_ssim_pairs.py" --json "$results/ms-ssim-pairs.json" ;;
    heads)
        python "$root/benchmarks/brainmask.py" "$CFTOOLS_DATA" --runs "$root/runs/brainmask" --json "$results/brainmask.json"
        python "$root/benchmarks/raw_heads.py" "$CFTOOLS_DATA" --json "$results/raw-heads.json"
        ;;
    engine) python "$root/benchmarks/engine.py" --json "$results/engine.json" ;;
    autoencoder) python "$root/benchmarks/autoencoder.py" "$CFTOOLS_DATA" --json "$results/autoencoder.json" ;;
    inversion) python "$root/benchmarks/round_trip.py" "$CFTOOLS_DATA" --json "$results/round-trip.json" ;;
    latent)
        mkdir "$work/latent"
        cd "$work/latent"
        cf-phantom twins -n 4 --seed 4242 --twin age=+30,-30
        python "$root/benchmarks/latent_edits.py" twins edited --change +30 --change=-30
        for way in edited/*; do
            cf-score --truth twins "$way" --json "$results/latent-$(basename "$way").json" --force
        done
        cd "$root"
        python "$root/benchmarks/precision.py" --json "$results/precision.json"
        python "$root/benchmarks/synthetic_ages.py" --json "$results/synthetic-ages.json" \
            --picture "$root/docs/figures/synthetic-ages.png"
        ;;
    volumes)
        mkdir "$work/volumes"
        cd "$work/volumes"
        cf-phantom twins -n 10 --seed 4242 --twin age=+30,-30
        python "$root/benchmarks/volumes.py" twins "$CFTOOLS_DATA" --json "$results/volumes.json"
        cd "$root"
        ;;
    diagnosis)
        mkdir "$work/diagnosis"
        cd "$work/diagnosis"
        cf-phantom twins -n 10 --seed 4242 --ages 55,90 --twin diagnosis=AD
        cf-edit --diagnosis AD --from diagnosis=CN twins edited
        cf-score --truth twins edited --json "$results/diagnosis.json" --force
        cd "$root"
        ;;
    *)
        known="truth, steps, real, laws, age, speed, engine, autoencoder, inversion, latent, volumes, diagnosis, heads, readers or pairs"
        echo "measure.sh: $what: $known" >&2
        exit 2
        ;;
    esac
done
