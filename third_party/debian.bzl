"""System libraries from Debian packages, as Bazel repositories."""

def _debian_library_impl(ctx):
    # A header in /usr/include is no input that Bazel watches. The package's list of checksums is:
    # as an input of every dependent compile it makes an upgrade rebuild, also past the disk cache.
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
