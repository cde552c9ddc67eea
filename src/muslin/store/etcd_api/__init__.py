"""What Muslin says to etcd: the messages (generated from ``rpc.proto``), the methods, and a client that fails over.

Only this package knows gRPC. ``rpc_pb2.py`` and ``rpc_pb2.pyi`` are generated and committed, so that nobody needs a
compiler to install Muslin; ``rpc.proto`` says how, and a test generates them again and compares.
"""
