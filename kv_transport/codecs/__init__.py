"""Wire codecs: how a chunk's canonical payload is written on the wire, apart from how either end keeps it."""
