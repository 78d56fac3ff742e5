"""The one list of audio suffixes, and a look at the first bytes of files that have none of them."""

from __future__ import annotations

import os
import re
import stat

_SNDFILE = (
    ".wav", ".wave", ".bwf", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga", ".aiff", ".aif", ".aifc", ".au",
    ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".wv1", ".voc", ".avr", ".paf", ".pvf", ".sd2", ".sds", ".sf",
    ".ircam", ".svx", ".8svx", ".iff", ".xi", ".wve", ".htk", ".mat4", ".mat5", ".mpc2k", ".wavex", ".mp1",
)  # fmt: skip
"""Suffixes that libsndfile reads."""
_FFMPEG = (
    ".m4a", ".m4b", ".m4r", ".mp4", ".m4v", ".mov", ".aac", ".adts", ".wma", ".asf", ".wmv", ".webm", ".weba", ".mka",
    ".mkv", ".3gp", ".3gpp", ".3g2", ".amr", ".awb", ".ac3", ".eac3", ".dts", ".ape", ".wv", ".tta", ".mpc", ".spx",
    ".ra", ".rm", ".ogv", ".ogx", ".avi", ".flv", ".mpg", ".mpeg", ".gsm", ".dsf", ".dff", ".tak", ".shn", ".oma",
    ".aa3", ".qcp",
)  # fmt: skip
"""Suffixes that need FFmpeg. Without it, their clips become rejects that say so."""
AUDIO_SUFFIXES = (*_SNDFILE, *_FFMPEG)
"""Suffixes of recordings in all stages, preferred ones first: of two files for one clip, the first is taken."""

_PLACES = {suffix: place for place, suffix in enumerate(AUDIO_SUFFIXES)}
HEAD_BYTES = 20
"""Number of bytes by which a file is known as audio."""
_HEADS = re.compile(
    rb"RIFF.{4}(?:WAVE|AVI )|RIFX.{4}WAVE|RF64|BW64|riff\x2e\x91|FORM.{4}(?:AIF[FC]|8SVX|16SV)|fLaC|OggS|\.snd|dns\."
    rb"|caff|NIST_1A|Creative Voice|2BIT|PVF1| paf|fap |\x64\xa3[\x01-\x04]\x00|ID3[\x02-\x04]"
    rb"|.{4}ftyp(?!hei|hev|mif|msf|avi|jp)|#!AMR|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\x1a\x45\xdf\xa3|\x0b\x77|MAC |wvpk"
    rb"|TTA1|MP\+|MPCK|\.RMF|\.ra\xfd|DSD |FRM8|FLV\x01|ajkg|tBaK"
    # A frame of MPEG layer II or III, or of AAC (ADTS). Layer I looks like the byte-order mark of UTF-16.
    rb"|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xeb]|\xff[\xf0\xf1\xf8\xf9][\x00-\xf3]",
    re.DOTALL,
)
"""First bytes of the formats above, as the formats' own documents state them; not of pictures in MP4's container."""


def suffix_rank(name: str) -> int:
    """Return the place of a file's suffix in `AUDIO_SUFFIXES`; the lowest is preferred, an unknown one comes last."""
    return _PLACES.get(_suffix(name), len(_PLACES))


def has_audio_suffix(name: str) -> bool:
    """Return whether a file's name ends in one of `AUDIO_SUFFIXES`, in any case, and has something before it."""
    return _suffix(name) in _PLACES


def starts_like_audio(path: str) -> bool:
    """Return whether a regular file begins with the bytes of an audio format. A file that cannot be read does not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and begins_like_audio(os.read(descriptor, HEAD_BYTES))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def begins_like_audio(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` of a file are those of an audio format."""
    return _HEADS.match(head) is not None


def _suffix(name: str) -> str:
    place = name.rfind(".")  # a pathlib.Path for each of two million names would take long
    return name[place:].lower() if place > 0 else ""
