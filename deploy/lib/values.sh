# shellcheck shell=bash
# Values of options: each function prints the value if it will do, else ends the script. Needs
# messages.sh.

# A whole number of at least 1.
count() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die_usage "$1 is '$2'; it must be a whole number of at least 1"
  say "$2"
}

existing_file() {
  [[ -f $2 && -r $2 ]] || die_usage "$1: there is no readable file '$2'"
  realpath -- "$2"
}

existing_folder() {
  [[ -d $2 && -r $2 ]] || die_usage "$1: there is no readable folder '$2'"
  realpath -- "$2"
}
