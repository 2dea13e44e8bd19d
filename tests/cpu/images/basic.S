# SPDX-License-Identifier: LGPL-2.1-or-later
# The first part of long.S without software interrupts: what a KVM that emulates every instruction of
# ring 0 (as in a container on a virtual machine) gets through as well.
.set BASIC, 1
.include "long.S"
