"""The fonts that pictures are printed in: families of Debian packages, some of them never seen in training."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont

DEBIAN_PACKAGES = (
    "fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-roboto fonts-lato fonts-open-sans fonts-noto-core "
    "fonts-croscore fonts-crosextra-carlito fonts-crosextra-caladea fonts-hack fonts-firacode fonts-inconsolata "
    "fonts-cantarell fonts-comfortaa fonts-linuxlibertine fonts-ebgaramond fonts-sil-gentium fonts-quicksand "
    "fonts-urw-base35 fonts-dosis fonts-cabin fonts-junicode"
)
FOLDER = Path("/usr/share/fonts")

# Family -> its faces' file names, without suffix.
TRAIN = {
    "DejaVu Sans": "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansCondensed DejaVuSansCondensed-Bold",
    "DejaVu Sans Mono": "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique",
    "DejaVu Serif": "DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerifCondensed",
    "Liberation Sans": "LiberationSans-Regular LiberationSans-Bold LiberationSans-Italic LiberationSansNarrow-Bold",
    "Liberation Serif": "LiberationSerif-Regular LiberationSerif-Bold LiberationSerif-Italic",
    "Liberation Mono": "LiberationMono-Regular LiberationMono-Bold LiberationMono-Italic",
    "FreeSans": "FreeSans FreeSansBold FreeSansOblique",
    "FreeSerif": "FreeSerif FreeSerifBold FreeSerifItalic",
    "FreeMono": "FreeMono FreeMonoBold",
    "Roboto": "Roboto-Regular Roboto-Bold Roboto-Light Roboto-Italic Roboto-Black RobotoCondensed-Regular "
    "RobotoCondensed-Bold",
    "Lato": "Lato-Regular Lato-Bold Lato-Light Lato-Italic Lato-Heavy",
    "Noto Sans": "NotoSans-Regular NotoSans-Bold NotoSans-Italic NotoSansDisplay-Regular",
    "Noto Serif": "NotoSerif-Regular NotoSerif-Bold NotoSerif-Italic NotoSerifDisplay-Regular",
    "Carlito": "Carlito-Regular Carlito-Bold Carlito-Italic",
    "Caladea": "Caladea-Regular Caladea-Bold Caladea-Italic",
    "Hack": "Hack-Regular Hack-Bold Hack-Italic",
    "Fira Code": "FiraCode-Regular FiraCode-Bold FiraCode-Light",
    "Inconsolata": "Inconsolata",
    "Linux Libertine": "LinLibertine_R LinLibertine_RB LinLibertine_RI LinBiolinum_R LinBiolinum_RB LinBiolinum_RI",
    "EB Garamond": "EBGaramond12-Regular EBGaramond12-Bold EBGaramond12-Italic",
    "Quicksand": "Quicksand-Regular Quicksand-Bold Quicksand-Medium",
    "Nimbus Roman": "NimbusRoman-Regular NimbusRoman-Bold",
    "Nimbus Mono": "NimbusMonoPS-Bold",
    "URW Bookman": "URWBookman-Light URWBookman-Demi URWBookman-LightItalic",
    "URW Gothic": "URWGothic-Book URWGothic-Demi",
    "Palladio": "P052-Roman P052-Bold P052-Italic",
    "Dosis": "Dosis-Medium Dosis-Bold Dosis-Book",
    "Junicode": "JunicodeTwoBeta-Regular JunicodeTwoBeta-Bold JunicodeTwoBeta-SemiExpanded JunicodeTwoBeta-Italic",
    "Cantarell": "Cantarell-Regular Cantarell-Bold",
}
HELD_OUT = {
    "Open Sans": "OpenSans-Regular OpenSans-Bold OpenSans-Italic OpenSans-Semibold",
    "Cousine": "Cousine-Regular Cousine-Bold",
    "Gentium": "Gentium-R Gentium-I",
    "Cabin": "Cabin-Regular Cabin-Bold Cabin-Medium",
    "Century": "C059-Roman C059-Bold",
    "Comfortaa": "Comfortaa-Regular Comfortaa-Bold",
    "Tinos": "Tinos-Regular Tinos-Bold",
}
PLAIN = ("DejaVuSans", "LiberationSans-Regular", "DejaVuSansMono", "Roboto-Regular")
PLAIN_HELD_OUT = ("OpenSans-Regular", "Cousine-Regular", "Cabin-Regular")


@functools.cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.rglob("*.[to]tf"))}


@functools.cache
def faces(split: str, plain: bool = False) -> tuple[tuple[str, ...], ...]:
    """Families of faces of a split. plain: a few upright sans ones. Raises FileNotFoundError with what to install."""
    if plain:
        families = [(face,) for face in (PLAIN if split == "train" else PLAIN_HELD_OUT)]
    else:
        families = [tuple(names.split()) for names in (TRAIN if split == "train" else HELD_OUT).values()]
    missing = [face for family in families for face in family if face not in _files()]
    if missing:
        raise FileNotFoundError(f"no font {missing[0]} under {FOLDER}: apt-get install {DEBIAN_PACKAGES}")
    return tuple(families)


@functools.cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels."""
    return ImageFont.truetype(str(_files()[face]), size, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def mean_advance(face: str) -> float:
    """Pixels of a letter at size 100, on average."""
    text = "the quick brown fox jumps over 0123456789"
    return font(face, 100).getlength(text) / len(text)
