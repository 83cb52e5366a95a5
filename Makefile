# Everything from a clean clone, on a machine with Python 3.11 or later and make. `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Debian packages that some tests need, which are skipped without them: MRtrix3 reads our images, Chromium our reports.
DEBIAN := mrtrix3 chromium chromium-driver
INSTALLED := .venv/.installed
# Processes that run the tests, one thread each.
JOBS ?= 2

.PHONY: help install debian demo test test-slurm lint types docs weights weights-cdm reproduce-cdm
.NOTPARALLEL:

help:
	@echo "make demo     age a real scan and a simulated subject by 30 years: pictures and volumes in demo/"
	@echo "make test     check style and types, run the tests"
	@echo "make test-slurm  array jobs on a real SLURM, which it installs (Debian, as root)"
	@echo "make docs     the site, into site/"
	@echo "make reproduce-cdm  the tables of the CDM paper on a simulated cohort (about an hour on two cores)"
	@echo "make weights  train the bundled weights anew, into runs/ (well over ten hours without a GPU; CFTOOLS_DATA names the real scans)"
	@echo "make install  only make .venv, with the versions of constraints.txt"
	@echo "make debian   what some tests need beside Python: $(DEBIAN); as root, on Debian"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv: some minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@touch $@

# Without root, apt or its servers the tests that need them are skipped.
debian:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(DEBIAN) >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) \
		|| echo "$(DEBIAN): not installed, tests that need them are skipped"; fi

# A real anatomy: the MNI152 average that nilearn carries, made of adults of 25 on average. Then a simulated subject,
# whose picture shows the edit and the truth next to each other.
demo: $(INSTALLED)
	@mkdir -p demo
	$(BIN)/python -c "from nilearn.datasets import load_mni152_template as template; template(resolution=1).to_filename('demo/template_T1w.nii.gz')"
	$(BIN)/cf-edit --force --age +30 --from age=25 demo/template_T1w.nii.gz
	$(BIN)/cf-view --force demo/template_T1w.nii.gz demo/template_desc-agePlus30_T1w.nii.gz -o demo/template.png
	$(BIN)/cf-phantom --force demo/twins -n 1 --seed 7 --twin age=+30
	$(BIN)/cf-edit --force --age +30 demo/twins demo/edited
	$(BIN)/cf-view --force demo/twins/sub-0001/anat/sub-0001_T1w.nii.gz \
		demo/edited/sub-0001/anat/sub-0001_desc-agePlus30_T1w.nii.gz \
		demo/twins/derivatives/truth/sub-0001/anat/sub-0001_desc-agePlus30_T1w.nii.gz \
		--label "simulated subject" --label "cf-edit --age +30" --label "truth, 30 years on" -o demo/twin.png
	@echo "Look at demo/template.png and demo/twin.png; the volumes lie beside them."

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slurm: $(INSTALLED)
	@command -v sbatch > /dev/null || { apt-get update --quiet && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python docs/pages.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The bundled weights, as their cards describe them; cf-weights add then puts them into weights/.
# Those under 40, on whom docs/twin-flow.md measures ageing, and four more give no anatomy.
PEOPLE := IXI048,IXI162,IXI206,IXI211,IXI212,IXI213,IXI239,IXI252,IXI255,IXI257,IXI260,IXI316,IXI329,$\
	IXI357,IXI385,IXI396,IXI481,IXI508,IXI527,IXI546,IXI565,IXI575,IXI577,IXI606,IXI632
ANATOMY := --data $(CFTOOLS_DATA)/ixi --participant-label $(PEOPLE) \
	--source "25 IXI scans of people aged 40 to 75 (brain-development.org, CC BY-SA 3.0)" --licence CC-BY-SA-3.0
ANATOMY_AND_MS := --data $(CFTOOLS_DATA)/ixi --participant-label $(PEOPLE) --real $(CFTOOLS_DATA)/ms \
	--source "25 IXI scans of people aged 40 to 75 (brain-development.org, CC BY-SA 3.0) and two patients with MS (Lesjak et al. 2018, CC BY)" \
	--licence CC-BY-SA-3.0
HEADS := --real $(CFTOOLS_DATA)/ixi --licence CC-BY-SA-3.0 --source "base: anatomies of two patients with MS (Lesjak et al. 2018, $\
	CC BY); then 35 IXI scans with their heads (brain-development.org, CC BY-SA 3.0)"
# The models of the CDM paper's tables: latent diffusion, CDM, and the baselines in two stages, the first without a critic.
# EXTRA is added to each training. To try them all in minutes, on the MNI152 average alone:
#     make weights-cdm ANATOMY= ANATOMY_AND_MS= EXTRA="--set training.steps=2 --set data.cohort=3"
CACHED := $(ANATOMY) --cache runs/cache
weights-cdm: $(INSTALLED)
	@test -d "$(if $(ANATOMY),$(CFTOOLS_DATA)/ixi,.)" || { echo "CFTOOLS_DATA must name the folder that holds ixi/"; exit 2; }
	$(BIN)/cf-train --preset ae $(ANATOMY_AND_MS) --dtype float32 $(EXTRA) --out runs/ae-2mm
	$(BIN)/cf-train --preset ldm $(CACHED) --set 'data.space="runs/ae-2mm/weights.safetensors"' $(EXTRA) --out runs/age-ldm-2mm
	$(BIN)/cf-train --preset cdm $(CACHED) --set 'data.space="runs/ae-2mm/weights.safetensors"' \
		--init runs/age-ldm-2mm/weights.safetensors $(EXTRA) --out runs/age-cdm-2mm
	$(BIN)/cf-train --preset vae-gan $(CACHED) --set losses.adversarial=0.0 --set training.steps=1000 \
		--set training.learning_rate=1e-3 $(EXTRA) --out runs/vae-gan-2mm-first
	$(BIN)/cf-train --preset vae-gan $(CACHED) --init runs/vae-gan-2mm-first/weights.safetensors --seed 1 $(EXTRA) --out runs/vae-gan-2mm
	$(BIN)/cf-train --preset alpha-gan $(CACHED) --set losses.adversarial=0.0 --set training.steps=700 \
		--set training.learning_rate=1e-3 $(EXTRA) --out runs/alpha-gan-2mm-first
	$(BIN)/cf-train --preset alpha-gan $(CACHED) --init runs/alpha-gan-2mm-first/weights.safetensors --seed 1 $(EXTRA) --out runs/alpha-gan-2mm
	$(BIN)/cf-train --preset vq $(CACHED) $(EXTRA) --out runs/vq-2mm
	$(BIN)/cf-train --preset vqvae-ar $(CACHED) --set 'data.space="runs/vq-2mm/weights.safetensors"' $(EXTRA) --out runs/vqvae-ar-2mm

# Tables 1 and 2 of the CDM paper, with figures like its 2 and 3. ARGS=--train makes weights-cdm first; --help has the rest.
reproduce-cdm: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reproduce_cdm.py --json docs/reproduction/cdm.json --pictures docs/reproduction $(ARGS)
	$(BIN)/python benchmarks/tables.py --write

weights: weights-cdm
	@test -d "$(CFTOOLS_DATA)/ixi" || { echo "CFTOOLS_DATA must name the folder that holds ixi/"; exit 2; }
	$(BIN)/cf-train --preset twin --condition age $(ANATOMY) --out runs/twin-age-2mm-first
	$(BIN)/cf-train --preset twin --condition age $(ANATOMY) --init runs/twin-age-2mm-first/weights.safetensors --seed 1 \
		--set training.steps=1400 --set training.learning_rate=7e-4 --set data.cohort=450 --out runs/twin-age-2mm
	$(BIN)/cf-train --preset twin --condition diagnosis $(ANATOMY) --set training.steps=1200 --set data.cohort=400 \
		--out runs/twin-diagnosis-2mm
	$(BIN)/cf-train --preset age --condition age $(ANATOMY) --out runs/age-2mm
	$(BIN)/cf-train --preset tissues $(ANATOMY) --set training.steps=2794 --set data.cohort=400 --set data.template=0.1 \
		--out runs/tissues-2mm-first
	$(BIN)/cf-train --preset tissues $(ANATOMY) --init runs/tissues-2mm-first/weights.safetensors --seed 1 \
		--set training.steps=1500 --set training.learning_rate=1e-3 --out runs/tissues-2mm-second
	$(BIN)/cf-train --preset tissues $(ANATOMY) --init runs/tissues-2mm-second/weights.safetensors --seed 2 \
		--set training.learning_rate=7e-4 --set training.ema=0.995 --out runs/tissues-2mm-third
	$(BIN)/cf-train --preset tissues $(ANATOMY) --init runs/tissues-2mm-third/weights.safetensors --seed 3 \
		--set training.steps=1200 --set training.learning_rate=5e-4 --set training.ema=0.995 --out runs/tissues-2mm
	$(BIN)/cf-train --preset score-age $(ANATOMY) --set training.steps=1334 --set data.cohort=600 --set data.every=1 --out runs/score-age-2mm
	$(BIN)/cf-train --preset sex $(ANATOMY) --out runs/score-sex-2mm
	$(BIN)/cf-train --preset features $(ANATOMY) --set training.steps=1202 --set data.cohort=600 --set data.every=1 --out runs/features-2mm
	$(BIN)/cf-train --preset brainmask --data $(CFTOOLS_DATA)/ms --source "anatomies of two patients with MS (Lesjak et al. 2018, CC BY)" \
		--licence CC-BY-SA-3.0 --out runs/brainmask/base
	$(BIN)/cf-train --preset brainmask --init runs/brainmask/base/weights.safetensors $(HEADS) --set training.steps=1572 \
		--set training.learning_rate=1.5e-3 --set data.cohort=12 --set data.real=0.8 --out runs/brainmask-2mm
