# One image for every kind of cluster: cluster.yaml, kuberay.yaml and slurm.sbatch (as an Apptainer image).
#
#   docker build --tag REGISTRY/slick .
#
# The base image has CUDA, Python 3.11 and Ray; constraints.txt has the tested version of everything else. Without the
# image, the clusters install the same packages when their nodes start, which takes minutes per node.
FROM rayproject/ray:2.60.0-py311-gpu

WORKDIR /home/ray/slick
COPY --chown=ray:users constraints.txt pyproject.toml README.md ./
# Packages before the code, so that a change of the code does not install them again. torch first: the wheel of its pin.
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt gguf peft bitsandbytes \
    && rm /tmp/requirements.txt
COPY --chown=ray:users slick slick
COPY --chown=ray:users tuning tuning
COPY --chown=ray:users jobs jobs
RUN pip install --no-cache-dir --no-deps .

# hadolint ignore=DL3064
ENV RAY_AUTH_MODE=token \
    RAY_TRAIN_ENABLE_STATE_TRACKING=1 \
    TOKENIZERS_PARALLELISM=false
CMD ["slick", "--help"]
