"""The content of Envoy's files over gRPC, for Envoys anywhere: the aggregated discovery service, in its incremental form."""
