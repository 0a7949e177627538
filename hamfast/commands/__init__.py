"""What the commands of ``hamfast`` do; :mod:`hamfast.cli` puts them together."""
