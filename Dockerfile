# syntax=docker/dockerfile:1
# One image for Beam's workers, for a Flex Template's launcher and for the command itself; BuildKit builds it.
#   docker build -t REGISTRY/featuremill:TAG .
#   docker build -t REGISTRY/featuremill-gpu:TAG --build-arg EXTRAS=gcp,aws,gpu .
# BEAM is the apache-beam version of constraints.txt; tests/distributed/test_dataflow.py compares them.
ARG BEAM=2.77.0
ARG PYTHON=3.11

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 AS launcher

# All wheels at their tested versions, made where compilers may be needed and sources may lie about.
FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS wheels
ARG EXTRAS=gcp,aws
WORKDIR /src
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY transforms transforms
RUN pip wheel --no-cache-dir -c constraints.txt --wheel-dir /wheels ".[${EXTRAS}]"

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS worker
ARG EXTRAS=gcp,aws
# `imagenet` bakes Keras's weights in, `none` leaves them out (for --weights gs://…).
ARG WEIGHTS=imagenet
ARG BACKBONE=vgg19
# Into the system's Python: Beam's boot makes each worker's environment on top of it.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    --mount=type=bind,from=wheels,source=/src/constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --no-index --find-links /wheels -c /constraints.txt "featuremill[${EXTRAS}]" \
    && pip check
# Keras's cache folder. Our own loader downloads into it, checks Keras's published hash, and renames when all is there.
ENV KERAS_HOME=/opt/keras
RUN if [ "${WEIGHTS}" != none ]; then \
      python -c "from pipeline.options import ExtractOptions as O; \
O(inputs=('x',), output='/tmp/x', weights='${WEIGHTS}', backbone='${BACKBONE}').load_weights()" \
      && chmod -R a+rX /opt/keras; \
    fi
# A Flex Template's launcher, and what it starts.
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY flex_template/launch.py /opt/featuremill/launch.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/featuremill/launch.py
# Root, as in Beam's own image: Dataflow mounts its folders for root. Beam starts its workers by this entry point.
ENTRYPOINT ["/opt/apache/beam/boot"]

# For people, as nobody in particular:  docker build --target cli …;  docker run IMAGE extract gs://… --output gs://…
FROM worker AS cli
RUN useradd --create-home --uid 10001 featuremill
USER featuremill
WORKDIR /home/featuremill
ENTRYPOINT ["featuremill"]

# What is built without --target.
FROM worker
