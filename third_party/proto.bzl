"""C++ libraries from .proto files, by the system's protoc."""

load("@rules_cc//cc:defs.bzl", "cc_library")

ProtoSourcesInfo = provider(fields = {"transitive": "depset of the .proto files that an importer needs"})

def _protoc_impl(ctx):
    sources = depset(
        ctx.files.srcs,
        transitive = [dep[ProtoSourcesInfo].transitive for dep in ctx.attr.deps],
    )
    args = ctx.actions.args()
    args.add("-I.")
    args.add("-I/usr/include")
    args.add("--cpp_out=" + ctx.bin_dir.path)
    tools = []
    if ctx.attr.grpc:
        tools.append(ctx.executable._grpc_plugin)
        args.add("--plugin=protoc-gen-grpc=" + ctx.executable._grpc_plugin.path)
        args.add("--grpc_out=" + ctx.bin_dir.path)
    args.add_all(ctx.files.srcs)
    ctx.actions.run(
        executable = ctx.executable._protoc,
        arguments = [args],
        inputs = depset(ctx.files._versions, transitive = [sources]),
        outputs = ctx.outputs.outs,
        tools = tools,
        mnemonic = "Protoc",
        progress_message = "Generating C++ from protos of %{label}",
    )
    return [
        DefaultInfo(files = depset(ctx.outputs.outs)),
        ProtoSourcesInfo(transitive = sources),
    ]

_protoc = rule(
    implementation = _protoc_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "deps": attr.label_list(providers = [ProtoSourcesInfo]),
        "grpc": attr.bool(),
        "outs": attr.output_list(mandatory = True),
        "_protoc": attr.label(
            default = "@com_google_protobuf_system//:protoc",
            executable = True,
            allow_single_file = True,
            cfg = "exec",
        ),
        "_grpc_plugin": attr.label(
            default = "@com_github_grpc_grpc//:grpc_cpp_plugin",
            executable = True,
            allow_single_file = True,
            cfg = "exec",
        ),
        "_versions": attr.label_list(default = [
            "@com_github_grpc_grpc//:versions",
            "@com_google_protobuf_system//:versions",
        ]),
    },
)

def _sources_of(dep):
    if ":" not in dep:
        dep = dep + ":" + dep.rpartition("/")[2]
    return dep + "_protoc"

def moe_proto_library(name, srcs, deps = [], grpc = False, **kwargs):
    """A cc_library of the messages (and with grpc = True the services) in `srcs`.

    Protos import, and C++ includes, by the path from the repository's root:
    `import "proto/moe/v1/job.proto";` and `#include "proto/moe/v1/job.pb.h"`.

    Args:
      name: name of the cc_library.
      srcs: .proto files of this package.
      deps: moe_proto_library targets whose protos are imported.
      grpc: whether to generate NAME.grpc.pb.h as well.
      **kwargs: visibility, testonly and the like.
    """
    stems = [src.rpartition(".proto")[0] for src in srcs]
    suffixes = [".pb"] + ([".grpc.pb"] if grpc else [])
    hdrs = [stem + suffix + ".h" for stem in stems for suffix in suffixes]
    sources = [stem + suffix + ".cc" for stem in stems for suffix in suffixes]
    _protoc(
        name = name + "_protoc",
        srcs = srcs,
        outs = hdrs + sources,
        grpc = grpc,
        deps = [_sources_of(dep) for dep in deps],
        **kwargs
    )
    cc_library(
        name = name,
        srcs = sources,
        hdrs = hdrs,
        # Generated code isn't held to our warnings.
        copts = ["-w"],
        deps = deps + (
            ["@com_github_grpc_grpc//:grpc++"] if grpc else ["@com_google_protobuf_system//:protobuf"]
        ),
        **kwargs
    )
