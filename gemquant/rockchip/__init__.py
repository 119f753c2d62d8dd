"""Everything for Rockchip's NPUs: the toolkit, its rules, boards, the programs that run there."""
