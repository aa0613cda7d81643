# Yendor with everything that it needs, for each machine of a cluster (docs/cluster.md).
#
#     docker build -t yendor:cpu .
#     docker build -t yendor:gpu --build-arg REQUIREMENTS=gpu .
#     docker run --rm yendor:cpu yendor doctor            # what it can run, and what is missing
#
# No virtual environment: Ray's launcher and KubeRay start login shells, which know /usr/local/bin and no PATH of an image's.
FROM python:3.11-slim-bookworm

# g++ and make: ALFWorld's planner is compiled here, and engines compile kernels while they run. libnuma1: vLLM on a CPU.
# openssh-client and rsync: the head of Ray's launcher sets up the other machines. wget: KubeRay's probes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates g++ git libnuma1 make openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# cpu: the exact set of requirements/, with vLLM for the CPU. gpu: what pyproject.toml asks for, with vLLM, resolved by pip.
ARG REQUIREMENTS=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 RAY_USAGE_STATS_ENABLED=0

WORKDIR /opt/yendor
COPY requirements requirements
RUN python -m pip install setuptools==80.9.0 wheel==0.45.1
RUN if [ "$REQUIREMENTS" = cpu ]; then \
        { python -m pip install --no-deps -r requirements/torch.txt || \
          python -m pip install --no-deps --index-url "$TORCH_INDEX" -r requirements/torch.txt; } \
        && python -m pip install --no-deps -r requirements/cpu.txt \
        && python -m pip install --no-deps --no-build-isolation -r requirements/planner.txt; \
    elif [ "$REQUIREMENTS" != gpu ]; then \
        echo "REQUIREMENTS=$REQUIREMENTS: expected cpu or gpu"; exit 2; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY agents agents
COPY configs configs
COPY envs envs
COPY inference inference
COPY learner learner
COPY orchestration orchestration
COPY reward_server reward_server
# Ray in one version everywhere: that of requirements/cpu.txt. A cluster takes no machine with another.
RUN if [ "$REQUIREMENTS" = cpu ]; then \
        python -m pip install --no-deps --no-build-isolation .; \
    else \
        grep '^ray==' requirements/cpu.txt > ray.txt && python -m pip install -c ray.txt ".[vllm]"; \
    fi

# 1000 is also the first user of most machines, so what is written to a shared folder or mounted from there fits.
RUN useradd --create-home --uid 1000 --shell /bin/bash yendor
USER yendor
WORKDIR /home/yendor
CMD ["yendor", "doctor"]
