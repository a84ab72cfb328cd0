# The image of a Ray node that can host Rekindle's instances: docker-compose.yml runs one head and two workers of it.
FROM python:3.11-slim

WORKDIR /app

# Only what the lock pins, by hash. A layer of its own: it changes less often than the code.
COPY requirements-runtime.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements-runtime.lock

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --no-build-isolation --no-deps . \
    && useradd --create-home rekindle

USER rekindle
