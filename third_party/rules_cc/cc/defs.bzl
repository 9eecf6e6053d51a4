"""The part of rules_cc that Bazel's own tools and our BUILD files load.

Debian's bazel-rules-cc is too new for its Bazel. A newer Bazel takes the real rules_cc instead.
"""

cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_proto_library = native.cc_proto_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
objc_library = native.objc_library

def cc_flags_supplier(**_kwargs):
    pass

def compiler_flag(**_kwargs):
    pass
