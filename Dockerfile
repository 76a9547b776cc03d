# One image for every service: the command says which one a container is.
#   docker build --build-arg VERSION=$(git describe --tags --always) --build-arg REVISION=$(git rev-parse HEAD) -t orderflow .
ARG GO_IMAGE=golang:1.26-bookworm

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
ARG REVISION=unknown
RUN --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -buildvcs=false -o /out/usr/local/bin/orderflow \
      -ldflags "-s -w -X main.version=${VERSION} -X main.revision=${REVISION}" ./cmd/orderflow \
 && mkdir -p /out/etc/ssl/certs \
 && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
 && mkdir -p /out/var/lib/orderflow

# Nothing but the program, certificates and a folder that its user owns. Health is asked from outside, by
# `orderflow healthcheck`: there is no shell in here.
FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="orderflow" \
      org.opencontainers.image.source="https://github.com/orderflow-dev/orderflow" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/usr /usr
COPY --from=build /out/etc /etc
COPY --from=build --chown=65532:65532 /out/var/lib/orderflow /var/lib/orderflow
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["orderflow"]
