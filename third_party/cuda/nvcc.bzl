"""Libraries of CUDA sources, by the nvcc of the toolkit in --define=cuda_home."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

# Kernels for these cards, and what later ones translate for themselves.
_CODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
]

_OPTIONS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    # Bits must depend on the source alone (.bazelrc).
    "-fmad=false",
    "-Xcompiler=-fPIC,-march=x86-64-v3,-ffp-contract=off,-Wall,-Wextra,-Werror",
]

def _nvcc_library_impl(ctx):
    home = ctx.var.get("cuda_home", "/usr/local/cuda")
    deps = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps])
    headers = depset(ctx.files.hdrs, transitive = [deps.compilation_context.headers])
    objects = []
    for source in ctx.files.srcs:
        object = ctx.actions.declare_file("_objs/{}/{}.o".format(ctx.label.name, source.basename))
        ctx.actions.run_shell(
            command = '"$1/bin/nvcc" --version > /dev/null 2>&1 || { ' +
                      'echo "--config=cuda needs $1/bin/nvcc; elsewhere: --define=cuda_home=FOLDER" >&2; exit 1; }; ' +
                      'exec "$1/bin/nvcc" "${@:2}"',
            arguments = [home] + _CODE + _OPTIONS + ["-I.", "-c", source.path, "-o", object.path],
            inputs = depset([source], transitive = [headers]),
            outputs = [object],
            mnemonic = "Nvcc",
            progress_message = "Compiling {} with nvcc".format(source.short_path),
            use_default_shell_env = True,
        )
        objects.append(object)

    toolchain = find_cpp_toolchain(ctx)
    archive = ctx.actions.declare_file("lib{}.a".format(ctx.label.name))
    ctx.actions.run(
        executable = toolchain.ar_executable,
        arguments = ["rcsD", archive.path] + [object.path for object in objects],
        inputs = depset(objects, transitive = [toolchain.all_files]),
        outputs = [archive],
        mnemonic = "NvccArchive",
    )
    library = cc_common.create_library_to_link(
        actions = ctx.actions,
        cc_toolchain = toolchain,
        feature_configuration = cc_common.configure_features(ctx = ctx, cc_toolchain = toolchain),
        static_library = archive,
        pic_static_library = archive,
    )
    input = cc_common.create_linker_input(
        owner = ctx.label,
        libraries = depset([library]),
        user_link_flags = depset([
            "-L{}/lib64".format(home),
            "-Wl,-rpath,{}/lib64".format(home),
            "-lcublas",
            "-lcudart",
        ]),
    )
    own = CcInfo(
        compilation_context = cc_common.create_compilation_context(headers = depset(ctx.files.hdrs)),
        linking_context = cc_common.create_linking_context(linker_inputs = depset([input])),
    )
    return [
        DefaultInfo(files = depset([archive])),
        cc_common.merge_cc_infos(cc_infos = [own, deps]),
    ]

nvcc_library = rule(
    implementation = _nvcc_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = [".h"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
    doc = "As cc_library, of .cu files, linked with cuBLAS.",
)
