# The container image of pickd, for linux/amd64 and linux/arm64:
#
#   docker build -t pickd .
#   docker run --rm pickd --help
#
# docs/install.md says how to run the image.
ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src

# This layer builds the dependencies around an empty pickd, so a change of the sources rebuilds
# pickd alone. Cargo wants the files of the benchmarks and examples that Cargo.toml names; empty files will do.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY tools/protoc tools/protoc
RUN mkdir src benches examples \
    && sed -n '/^\[\[bench\]\]/{n;s|^name = "\(.*\)"|benches/\1.rs|p};/^\[\[example\]\]/{n;s|^name = "\(.*\)"|examples/\1.rs|p}' \
        Cargo.toml | xargs touch src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && cargo build --locked --release --bin pickd \
    && cargo clean --locked --release --package pickd

COPY docs/library.md docs/library.md
COPY src src
RUN cargo build --locked --release --bin pickd

FROM gcr.io/distroless/cc-debian12:nonroot
COPY LICENSE /usr/share/doc/pickd/LICENSE
COPY --from=build /src/target/release/pickd /pickd

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pickd" \
      org.opencontainers.image.description="The pick daemon: which instance should take the next request?" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"

USER 65532:65532
EXPOSE 7425
STOPSIGNAL SIGTERM
# Healthy once all required registries have been read.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["/pickd", "healthcheck"]
ENTRYPOINT ["/pickd"]
CMD ["run"]
