#include <glog/logging.h>

#include <iostream>
#include <string>
#include <vector>

#include "client/moectl/command.h"

int main(int argc, char** argv) {
  FLAGS_logtostderr = true;
  FLAGS_minloglevel = google::GLOG_ERROR;
  google::InitGoogleLogging("moectl");
  return moe::RunMoectl(std::vector<std::string>(argv + 1, argv + argc), std::cout,
                        std::cerr);
}
