"""A llamafile: a runtime, its default arguments and the weights in one executable.

    runtime, byte for byte      an executable, often with its own zip directory at its end
    .args                       a zip entry: default arguments
    NOTICE                      a zip entry: Gemma's notice, if the weights are Gemma's
    zeros                       up to the alignment
    NAME.gguf                   a zip entry, stored; its data begins at a multiple of 65536
    zip directory               the runtime's entries, then ours

The runtime finds the directory at the end of its own file and maps the weights from there.

Source: docs/creating_llamafiles.md and llamafile/llamafile.c in
https://github.com/mozilla-ai/llamafile
"""
