# One image for the launcher and for Beam's workers. The tag is the apache-beam version of constraints.txt.
FROM apache/beam_python3.11_sdk:2.77.0

WORKDIR /opt/featuremill
COPY setup.py constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY transforms transforms
RUN pip install --no-cache-dir -c constraints.txt . && pip check

# Beam's own entry point stays: a worker is started by the runner, which passes its arguments. To launch from this
# image instead: docker run --entrypoint featuremill IMAGE extract …
