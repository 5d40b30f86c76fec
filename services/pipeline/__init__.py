"""The ordered path from the normaliser to the sinks: sequencer, bus, sink contract, supervisor."""
