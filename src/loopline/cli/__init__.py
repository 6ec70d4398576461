"""The command line, one file per noun; speaks through `sdk.client`; imports lazily so that --help is quick."""
