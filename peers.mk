# Recipes of the peer runtime; the main Makefile includes this file.
PYTHON ?= python

# Generated with a compiler as old as Flower's own pins allow, so that the code loads with
# every protobuf runtime that Flower does.
PROTOC_VERSION := 1.70.0

.PHONY: proto demo-peers bench-peers

proto:
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/pip install --quiet "grpcio-tools==$(PROTOC_VERSION)" "setuptools<80"
	build/protoc/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. \
		flower_dhb/peer/relay.proto

demo-peers:
	$(PYTHON) -m flower_dhb.cli mesh create --topology ring:8 --app . --out runs/demo-mesh --force
	$(PYTHON) -m flower_dhb.cli mesh up runs/demo-mesh

bench-peers:
	$(PYTHON) -m benchmarks.peers
