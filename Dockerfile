FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The history is not in the build's context, so the caller names the version:
# docker build --build-arg VERSION=$(git describe --tags --always) .
ARG VERSION=unknown
RUN make build VERSION="$VERSION" && mkdir -p /empty

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/sluice /usr/local/bin/sluice
# For stores with file:// URLs, and for temporary files.
COPY --from=build --chown=65532:65532 /empty /var/lib/sluice
COPY --from=build --chown=65532:65532 /empty /tmp
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/sluice"]
CMD ["serve", "-c", "/etc/sluice/sluice.yaml"]
