"""Fuzz targets: each is searched by libFuzzer, and its known inputs are a test."""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

def fuzz_target(name, deps):
    """Of NAME.cc: NAME, for --config=fuzz alone, and NAME_test.

    Args:
      name: what ends in _fuzz.
      deps: of NAME.cc.
    """
    cc_library(
        name = name + "_target",
        testonly = True,
        srcs = [name + ".cc"],
        deps = deps + [":target", "@glog"],
        alwayslink = True,
    )
    cc_binary(
        name = name,
        testonly = True,
        linkopts = ["-fsanitize=fuzzer"],
        tags = ["manual"],
        deps = [":" + name + "_target"],
    )
    cc_test(
        name = name + "_test",
        size = "small",
        srcs = ["replay_main.cc"],
        args = ["tests/fuzz/findings/" + name],
        data = native.glob(["findings/" + name + "/*"]),
        deps = [":" + name + "_target", ":target", "@gtest"],
    )
