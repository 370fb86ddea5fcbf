"""gRPC over HTTP/2 on the event loop itself: the data plane's own transport, both ends of it.

grpc.aio hands every message from its poller's threads to the loop and back, which costs a cold
message several times what carrying it does (docs/adr/0005-a-transport-of-our-own.md). This one
reads and writes in the loop's own turn. Headers are compressed by the hpack library; RFC 9113 and
the gRPC protocol over it are here. Authentication, validation and errors are not.
"""
