# The driver as one static binary; `make image` builds it. `make image-all` builds it
# for every platform, by the Go compiler and without emulation.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd/csi-s3 cmd/csi-s3
COPY pkg pkg
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=unknown
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=$VERSION" -o /csi-s3 ./cmd/csi-s3

FROM scratch
ARG VERSION=unknown
LABEL org.opencontainers.image.title="csi-s3" \
      org.opencontainers.image.description="S3 buckets as POSIX volumes: the CSI driver" \
      org.opencontainers.image.source="https://github.com/csi-s3/csi-s3" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /csi-s3 /csi-s3
# Root, because the node plugin mounts; the chart runs the controller as another user.
USER 0:0
ENTRYPOINT ["/csi-s3"]
