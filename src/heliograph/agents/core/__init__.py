"""The engine that the agents systems share: envelopes, interceptors, bus, gateway, audit, identity, language models."""
