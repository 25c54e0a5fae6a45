// Prints how many processors the control groups of a folder grant.
//
//     test_quota FOLDER
#include <cstdio>

#include "cpu_quota.h"

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    std::printf("%d\n", uf::processors_of_quota(arguments[1]));
    return 0;
}
