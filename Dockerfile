# Any verb of p2p_jax: docker build -t p2p_jax . && docker run --rm --init -v "$PWD/runs:/app/runs" p2p_jax --config=configs/sample.py
# For NVIDIA GPUs: --build-arg ACCELERATOR=cuda, and docker run --gpus=all. Their wheels bring CUDA; the host has the driver.
FROM python:3.11-slim

ARG ACCELERATOR=cpu
WORKDIR /app

# What it depends on changes less often than the code, and is a layer of its own.
COPY setup.py constraints.txt ./
COPY p2p_jax/__init__.py p2p_jax/
RUN case "$ACCELERATOR" in \
        cpu) extra='[serve]' ;; \
        cuda) extra='[serve,cuda]' ;; \
        *) echo "ACCELERATOR=$ACCELERATOR: expected cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir -c constraints.txt -e ".$extra"

COPY LICENSE ./
COPY configs configs/
COPY p2p_jax p2p_jax/

# Whoever runs it, also a user that the image does not know, may write to runs and to /tmp alone.
RUN useradd --uid 1000 --no-create-home trainer \
    && mkdir data runs \
    && chown trainer data runs
ENV HOME=/tmp USER=trainer PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER trainer
VOLUME ["/app/data", "/app/runs"]

ENTRYPOINT ["python", "-m", "p2p_jax.main"]
CMD ["--help"]
