"""Labs: container networks on one machine, from a topology to namespaces that a person can enter."""
