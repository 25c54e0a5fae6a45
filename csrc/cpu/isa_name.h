// Names of the instruction set that a source is compiled for, -DUF_ISA=NAME: UF_JOIN(x_, UF_ISA) and UF_STRING(UF_ISA).
#pragma once

#define UF_JOIN_(a, b) a##b
#define UF_JOIN(a, b) UF_JOIN_(a, b)
#define UF_STRING_(a) #a
#define UF_STRING(a) UF_STRING_(a)
