"""Small data sets of each layout of loose files, whose recordings are no audio."""

from __future__ import annotations

from pathlib import Path

LABELS = 'index,mid,display_name\n0,/m/a,"Speech, near"\n1,/m/b,Dog\n'
WAV = b"RIFF\0\0\0\0WAVEfmt "


def write(root: Path, name: str, content: str | bytes = b"x") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def audioset(root: Path) -> Path:
    write(root, "class_labels_indices.csv", LABELS)
    write(root, "eval_segments.csv", '# comment\nabc, 0.0, 10.0, "/m/a,/m/b"\nx-y_z, 30.0, 40.0, "/m/b"\n')
    write(root, "balanced_train_segments.csv", 'Lost, 0.0, 10.0, "/m/a"\nwith, 0.0, 1.0, "/m/a"\n')
    for name in ("audio/eval/Yabc.flac", "audio/x-y_z_30000_40000.wav", "audio/with.mp3", "audio/other.wav", "a.txt"):
        write(root, name)
    return root


def esc50(root: Path) -> Path:
    write(root, "meta/esc50.csv", "filename,fold,target,category\n1-a.wav,1,0,dog\n5-b.wav,5,7,cat\n")
    for name in ("audio/1-a.wav", "audio/5-b.wav", "audio/more.wav", ".hidden.wav", "_old/a.wav", "_old/b/c.wav"):
        write(root, name)
    return root


def speech_commands(root: Path) -> Path:
    write(root, "validation_list.txt", "yes/b.wav\n")
    write(root, "testing_list.txt", "no/a.wav\n")
    for name in ("yes/a.wav", "yes/b.wav", "no/a.wav", "_background_noise_/n.wav", "README.md"):
        write(root, name)
    return root


def folders(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("dog/a 1%25.wav", "dog/b#?.wav", "cat/deep/ü.flac", "cat/notes.txt"):
            write(root, f"{split}/{name}")
    write(root, "train/dog/unnamed", WAV + b"\0" * 20)
    return root


def manifest(root: Path) -> Path:
    write(root, "list.csv", "path,labels,start_s\nsub/a.wav,dog;cat,0.5\nsub/b.wav,dog,\nsub/lost.wav,cat,\n")
    for name in ("sub/a.wav", "sub/b.wav", "sub/c.wav", "elsewhere.wav"):
        write(root, name)
    return root / "list.csv"


MAKERS = (audioset, esc50, speech_commands, folders, manifest)
