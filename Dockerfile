# budgetnet with the versions of requirements.lock, from a checkout with its .git (whose tags give the version).
#
#   docker build --target cpu -t budgetnet .          # or podman
#   docker build --target cuda -t budgetnet:cuda .    # for NVIDIA GPUs; the driver is the host's
#
#   docker run --rm -v "$PWD":/work budgetnet predict photo.jpg
#   docker run --rm -v "$PWD":/work -v budgetnet:/cache --user "$(id -u)" budgetnet train quick --output runs/a
#   docker run --rm -v "$PWD":/work -v ~/cifar:/data:ro --gpus all budgetnet:cuda train best --data /data --output runs/b
#
# /cache keeps what is downloaded, in a volume of any name.
#
# Neither has the tools of development: no compiler, which torch.compile needs for CPUs, and no tests.

FROM python:3.12.12-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir --constraint requirements.lock build setuptools setuptools-scm \
    && python -m build --wheel --no-isolation --outdir /dist

FROM python:3.12.12-slim-bookworm AS base
ENV HOME=/tmp XDG_CACHE_HOME=/cache MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1
RUN useradd --uid 1000 budgetnet && install -d -m 1777 /work /cache
WORKDIR /work
ENTRYPOINT ["budgetnet"]
CMD ["--help"]

# torch of the public index comes with NVIDIA's libraries.
FROM base AS cuda
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --no-cache-dir --constraint /requirements.lock /dist/*.whl
USER 1000

# torch's own index has it without them, as the same version with a suffix, which counts as newer.
FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --no-cache-dir --constraint /requirements.lock --extra-index-url "$TORCH_INDEX" /dist/*.whl
USER 1000
