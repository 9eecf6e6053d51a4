"""System libraries from Debian packages, as Bazel repositories."""

def _debian_library_impl(ctx):
    # Bazel doesn't watch /usr/include. The package's list of checksums, an input of every dependent
    # compile, keeps the disk cache from answering with objects of an older package. In a warm tree
    # `bazel clean` is still needed after an upgrade, as with any compiler.
    for package in ctx.attr.packages:
        for name in [package + ":amd64", package]:
            checksums = ctx.path("/var/lib/dpkg/info/" + name + ".md5sums")
            if checksums.exists:
                ctx.symlink(checksums, package + ".md5sums")
                break
        if not checksums.exists:
            fail("Debian package {} is missing; run deploy/install.sh".format(package))
    for file in ctx.attr.files:
        ctx.symlink(file, ctx.path(file).basename)
    ctx.symlink(Label("//third_party/debian:{}.BUILD".format(ctx.name)), "BUILD")

debian_library = repository_rule(
    implementation = _debian_library_impl,
    attrs = {
        "packages": attr.string_list(mandatory = True),
        "files": attr.string_list(doc = "Paths that the BUILD file names, outside the default search path."),
    },
    doc = "Makes the repository described by third_party/debian/NAME.BUILD.",
    local = True,
)
