// A program for program_test.sh.
#include "common/base/program.h"

#include <iostream>

#include "absl/flags/flag.h"

ABSL_FLAG(int, number, 3, "A number.");
ABSL_FLAG(std::string, word, "a", "A word.");
ABSL_FLAG(double, size_gib, 0, "A size.");

int main(int argc, char** argv) {
  const auto arguments =
      moe::ParseCommandLine(argc, argv, "program prints its flags.", 1);
  if (absl::GetFlag(FLAGS_number) < 0)
    moe::ExitWithUsageError("--number must not be negative");
  std::cout << absl::GetFlag(FLAGS_number) << " " << absl::GetFlag(FLAGS_word);
  const double size = absl::GetFlag(FLAGS_size_gib);
  if (size != 0) std::cout << " " << moe::BytesOfGib("size_gib", size) << " bytes";
  for (const auto argument : arguments) std::cout << " " << argument;
  std::cout << "\n";
}
