# Recipes of the peer runtime; the Makefile includes this file.

# The compiler is as old as Flower's own pins allow, so that the generated code loads with
# every protobuf runtime that Flower does.
PROTOC_VERSION := 1.70.0

.PHONY: proto demo-peers bench-peers

## proto: generate the code of flower_dhb/peer/wire/relay.proto again
proto:
	@test -x build/protoc/bin/python || $(PYTHON) -m venv build/protoc
	@build/protoc/bin/python -m pip install --quiet --disable-pip-version-check "grpcio-tools==$(PROTOC_VERSION)" "setuptools<80"
	@build/protoc/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. flower_dhb/peer/wire/relay.proto

## demo-peers: eight peers on this machine, without any server
demo-peers: install
	@$(BIN)/flower-dhb mesh create --topology ring:8 --app . --out runs/demo-mesh --force
	@$(BIN)/flower-dhb mesh up runs/demo-mesh

## bench-peers: peers beside Flower's simulation and deployment, in one run
bench-peers: install
	@$(BIN)/python -m benchmarks.peers
