# One image for every kind of cluster: cluster.yaml, kuberay.yaml and slurm.sbatch (as an Apptainer image).
#
#   docker build --tag REGISTRY/slick .
#
# The base image has CUDA, Python 3.11 and Ray; requirements.lock has the tested version of everything else, with the
# hash of every file. Without the image, the clusters install packages when their nodes start, minutes per node.
FROM rayproject/ray:2.60.0-py311-gpu

WORKDIR /home/ray/slick
# Packages before the code, so that a change of the code does not install them again.
COPY --chown=ray:users requirements.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY --chown=ray:users pyproject.toml README.md ./
COPY --chown=ray:users slick slick
COPY --chown=ray:users tuning tuning
COPY --chown=ray:users jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# hadolint ignore=DL3064
ENV RAY_AUTH_MODE=token \
    RAY_TRAIN_ENABLE_STATE_TRACKING=1 \
    TOKENIZERS_PARALLELISM=false
CMD ["slick", "--help"]
