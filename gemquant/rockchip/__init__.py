"""Everything for Rockchip's NPUs.

options      options of ``gemquant rkllm``, and the rules of chips and toolkit releases
toolkit      finds rkllm-toolkit in this machine's Python environments
prepare      checks a request before a weight is read
rkllm        converts: writes the toolkit's input, runs it, describes the file
calls        the parameters that the toolkit is called with
smoothing    SmoothQuant and the emulation of w8a8
simulation   the toolkit's simulator
artifact     manifest and checks of a converted file
board_*      a board behind ssh or adb: connection, survey, workspace, events, runtime
bench        speed on a board
evaluate     predictions on a board, compared with the original
doctor       checks this machine and a board
rknn         decoder blocks in rknn-toolkit2's simulator
programs     run under other interpreters and on boards: plain files, standard library
"""
