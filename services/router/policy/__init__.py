"""The routing policy as a document: read, checked, kept in force, replaced while requests run.

`read` makes a `Policy` of text or refuses it with every fault; `PolicyStore` holds the one in
force; sources bring documents from a file, from Consul or from an operator. What a policy means
for a request is decided in services/router/core.
"""
