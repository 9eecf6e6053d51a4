// The kernel tests as one program; the argument: only those whose names have it.
#include <gtest/gtest.h>

int main(int argc, char** argv) { return testing::RunAll(argc > 1 ? argv[1] : ""); }
