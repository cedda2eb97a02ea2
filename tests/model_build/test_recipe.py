"""What may be asked of a build, and what is refused before any file is read."""

from pathlib import Path

import pytest

from model_build import recipe
from model_build.recipe import PRESETS, PreprocessingRecipe, Recipe
from service.errors import BuildError


def asked(preprocessing: PreprocessingRecipe) -> Recipe:
    """A recipe with this preprocessing."""
    files = Path("net.prototxt"), Path("net.caffemodel")
    return Recipe("net", "caffe", files, "cpu", "force_float32", (1, 64), preprocessing, "2012")


def test_a_preset_alone_is_whole() -> None:
    """Nothing else has to be said; the crop is left to the network."""
    assert recipe.preprocessing("caffe", "resnext") == PRESETS["resnext"]
    assert PRESETS["resnext"].crop is None


def test_parts_given_replace_those_of_the_preset() -> None:
    """And only those."""
    made = recipe.preprocessing("onnx", "caffe", color="rgb", std=(2, 2, 2), crop=224)
    assert made == PreprocessingRecipe(
        "rgb", PRESETS["caffe"].mean, (2, 2, 2), 256, "opencv-bilinear", 224
    )


def test_parts_alone_make_a_preprocessing() -> None:
    """No preset is needed when color, mean, std and resize are given."""
    made = recipe.preprocessing("caffe", None, "bgr", (1, 2, 3), (4, 5, 6), 299)
    assert made == PreprocessingRecipe("bgr", (1, 2, 3), (4, 5, 6), 299, "opencv-bilinear")


@pytest.mark.parametrize(
    ("kind", "preset", "resample"),
    [
        ("caffe", None, "opencv-bilinear"),
        ("onnx", None, "bilinear"),
        ("onnx", "resnext", "opencv-bilinear"),
        ("onnx", "resnet-v2", "opencv-bilinear"),
        ("onnx", "inception", "opencv-bilinear"),
        ("onnx", "dpn", "opencv-bilinear"),
        ("onnx", "densenet", "opencv-bilinear"),
        ("onnx", "caffe", "opencv-bilinear"),
        ("caffe", "efficientnet-lite", "bicubic"),
        ("caffe", "torchvision", "bilinear"),
    ],
)
def test_the_resampling_is_what_the_authors_use(
    kind: recipe.Kind, preset: str | None, resample: str
) -> None:
    """That of the preset, else of the network's kind; --resample replaces either."""
    parts = {} if preset else {"color": "rgb", "mean": (0, 0, 0), "std": (1, 1, 1), "resize": 256}
    assert recipe.preprocessing(kind, preset, **parts).resample == resample
    given = recipe.preprocessing(kind, preset, **parts, resample="lanczos")
    assert given.resample == "lanczos"


def test_torchvisions_numbers() -> None:
    """Those of its documentation, 0.485 and 0.229 and so on, times 255."""
    made = PRESETS["torchvision"]
    assert made.color == "rgb" and made.resize == 256
    assert made.mean == pytest.approx([255 * x for x in (0.485, 0.456, 0.406)])
    assert made.std == pytest.approx([255 * x for x in (0.229, 0.224, 0.225)])


def test_missing_parts_are_named_with_the_presets() -> None:
    """The error says which options to add, or which presets there are."""
    with pytest.raises(BuildError, match=r"lacks --color, --std, --resize\.$") as caught:
        recipe.preprocessing("caffe", None, mean=(0, 0, 0))
    assert all(preset in caught.value.remedy for preset in PRESETS)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"preset": "resnet"}, "--preprocess resnet is unknown"),
        ({"preset": "caffe", "std": (1, 0, 1)}, "--std"),
        ({"preset": "caffe", "std": (1, -2, 1)}, "--std"),
        ({"preset": "caffe", "crop": 257}, "--resize 256 is smaller than --crop 257"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(parts: dict, said: str) -> None:
    """Before anything is read."""
    with pytest.raises(BuildError, match=said):
        recipe.preprocessing("caffe", **parts)


IN_ONES, IN_BYTES = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)


@pytest.mark.parametrize(
    ("given", "made"),
    [(IN_ONES, IN_BYTES), (((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (255, 255, 255)))],
)
def test_a_pixel_range_of_one(given: tuple, made: tuple) -> None:
    """Mean and std are multiplied; a std of 1 then divides by 255."""
    asked = recipe.preprocessing("onnx", None, "rgb", *given, resize=256, pixel_range="1")
    assert (asked.mean, asked.std) == made
    assert recipe.doubt(asked) is None


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "the --mean and --std of --preprocess resnext are for"),
        ({"mean": (0.5, 0.5, 0.5)}, "the --std of --preprocess resnext are for"),
    ],
)
def test_a_presets_numbers_are_of_bytes(parts: dict, said: str) -> None:
    """They are not multiplied; with numbers in their place the rest of the preset stays."""
    with pytest.raises(BuildError, match=f"--pixel-range is 1, but {said}"):
        recipe.preprocessing("caffe", "resnext", **parts, pixel_range="1")
    made = recipe.preprocessing(
        "caffe", "resnext", mean=IN_ONES[0], std=IN_ONES[1], pixel_range="1"
    )
    assert (made.color, made.mean) == ("bgr", IN_BYTES[0])


@pytest.mark.parametrize(
    ("mean", "std", "options"),
    [
        (*IN_ONES, f"{recipe.options_of(*IN_BYTES)}, or --pixel-range 1"),
        (IN_BYTES[0], IN_ONES[1], recipe.options_of(*IN_BYTES)),
        (IN_ONES[0], IN_BYTES[1], recipe.options_of(*IN_BYTES)),
        (
            recipe.times(IN_BYTES[0], 255),
            recipe.times(IN_BYTES[1], 255),
            recipe.options_of(*IN_BYTES),
        ),
        ((104, 117, 123), (0.017,) * 3, "--mean 104,117,123 --std 58.8235,58.8235,58.8235"),
        ((0, 0, 0), (0.5, 1, 1), "--mean 0,0,0 --std 127.5,255,255, or --pixel-range 1"),
        ((0.5,) * 3, (1,) * 3, "--mean 127.5,127.5,127.5 --std 255,255,255, or --pixel-range 1"),
    ],
)
def test_numbers_that_are_probably_mistaken(mean: tuple, std: tuple, options: str) -> None:
    """The warning has the options that were probably meant, ready to be copied."""
    found = recipe.doubt(PreprocessingRecipe("rgb", mean, std, 256, "bilinear"))
    assert found is not None and found[0].startswith(recipe.options_of(mean, std))
    assert found[1] == options


def test_numbers_that_may_be_right() -> None:
    """Those of presets, raw pixels, and pixels that are only divided."""
    only_divided = (
        PreprocessingRecipe("rgb", (0, 0, 0), (std,) * 3, 256, "bilinear")
        for std in (1, 255, 256, 300)
    )
    for asked in (*PRESETS.values(), *only_divided):
        assert recipe.doubt(asked) is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("103.52,116.28,123.675", (103.52, 116.28, 123.675)), ("128", (128, 128, 128))],
)
def test_three_numbers_or_one_for_all(text: str, numbers: tuple) -> None:
    """The two forms of --mean and --std."""
    assert recipe.triple(text) == numbers


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1;2;3", "nan", "1,inf,3"])
def test_other_numbers_are_refused(text: str) -> None:
    """Two, four, none, not finite, not numbers."""
    with pytest.raises(ValueError, match="neither one number nor three"):
        recipe.triple(text)


@pytest.mark.parametrize(
    ("size", "mutable", "expected"),
    [(1, True, (1, 64)), (128, True, (1, 128)), (1, False, (1, 1)), (8, False, (8, 8))],
)
def test_batch(size: int, mutable: bool, expected: tuple[int, int]) -> None:
    """A mutable model takes at least up to 64 rows, a static one exactly what was asked for."""
    assert recipe.batch(size, mutable) == expected


def test_a_range_of_batches() -> None:
    """As it was asked for; it must be one, of a mutable model, and hold the size."""
    assert recipe.batch(1, True, (2, 16)) == (2, 16)
    for size, mutable, asked in [(1, False, (1, 8)), (1, True, (8, 8)), (1, True, (0, 8)),
                                 (1, True, (1, 1025)), (9, True, (1, 8))]:  # fmt: skip
        with pytest.raises(BuildError, match=rf"--batch-range {asked[0]} {asked[1]}"):
            recipe.batch(size, mutable, asked)


@pytest.mark.parametrize(
    ("asked", "target", "other"),
    [
        ("qint8_mixed_float16", "mlu", "cpu"),
        ("qint8_mixed_bfloat16", "cpu", "mlu"),
        ("force_bfloat16", "cpu", "mlu"),
    ],
)
def test_a_precision_that_only_one_target_has(asked: str, target: str, other: str) -> None:
    """The other target is refused it, with the precisions that it has."""
    assert recipe.precision(asked, target) == asked
    with pytest.raises(
        BuildError, match=f"{asked} cannot be built for --target {other}"
    ) as refused:
        recipe.precision(asked, other)
    assert "force_float16" in refused.value.remedy and asked not in refused.value.remedy


def test_architectures() -> None:
    """A name, with the numbers of clusters or without; nothing else."""
    assert recipe.arch("mtp_372") == "mtp_372"
    assert recipe.arch("mtp_372:6,8") == {"mtp_372": [6, 8]}
    assert (recipe.arch(recipe.ARCH),) == recipe.CardRecipe().archs
    for wrong in ("", "mlu370", "mtp_372:", "mtp_372:0", "mtp_372:6,", "mtp_372:six"):
        with pytest.raises(BuildError, match="is not the architecture"):
            recipe.arch(wrong)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("deploy_resnext50-32x4d.prototxt", "deploy_resnext50-32x4d"),
        ("my net (2).prototxt", "my-net-2-"),
        (".hidden", "hidden"),
        ("ready.prototxt", "model"),
        ("网络.prototxt", "model"),
        ("x" * 80, "x" * 63),
    ],
)
def test_a_name_is_made_of_the_prototxts(file: str, name: str) -> None:
    """One that can stand in a URL."""
    assert recipe.model_name(None, Path(file)) == name


@pytest.mark.parametrize("name", ["", "a/b", "infer", "-x", "x" * 64])
def test_a_name_that_cannot_name_a_model_is_refused(name: str) -> None:
    """A name that was asked for is never changed."""
    with pytest.raises(BuildError, match=r"--name: .* cannot name a model"):
        recipe.model_name(name, Path("net.prototxt"))


@pytest.mark.parametrize(
    ("crop", "height", "width"), [(None, 224, 224), (224, 224, 224), (None, 200, 256)]
)
def test_a_crop_of_the_networks_size_passes(crop: int | None, height: int, width: int) -> None:
    """The network's own size is also the default; it need not be square."""
    recipe.check_input_size(asked(recipe.preprocessing("caffe", "caffe", crop=crop)), height, width)


@pytest.mark.parametrize(
    ("crop", "height", "width", "said"),
    [
        (224, 227, 227, "--crop is 224, but the network takes 227 x 227"),
        (224, 224, 227, "--crop is 224, but the network takes 224 x 227"),
        (None, 224, 257, "--resize 256 is smaller than the network's input, 224 x 257"),
    ],
)
def test_a_crop_of_another_size_is_refused(
    crop: int | None, height: int, width: int, said: str
) -> None:
    """As is a short side from which the input cannot be cut."""
    with pytest.raises(BuildError, match=said):
        recipe.check_input_size(
            asked(recipe.preprocessing("caffe", "caffe", crop=crop)), height, width
        )
