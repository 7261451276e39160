"""Control flow: branches are joined, loops run to a fixpoint (lee2023smoothness).

Each form is a function of the interpreter, the equation and the operands to the outputs.
"""

from dataclasses import replace

import numpy as np

from vinb.analysis import intervals as iv
from vinb.analysis.abstract import Level, join
from vinb.analysis.equations import params_key

_ROUNDS = 3  # of a loop before its intervals are widened


def _cond(self, eqn, operands):
    index, *arguments = operands
    branches = eqn.params["branches"]
    known = index.interval.low if index.interval.is_point and "branches_platforms" not in eqn.params else None
    if known is not None:
        return self.run(branches[int(np.clip(known, 0, len(branches) - 1))], arguments)
    outs = [self.run(branch, arguments) for branch in branches]
    reach = {} if "branches_platforms" in eqn.params else self.compose(eqn, [(Level.ANY, index)])
    made = []
    for k, cases in enumerate(zip(*outs, strict=True)):
        if len({c.number for c in cases}) == 1:
            made.append(cases[0])
        else:
            number = self.numbers("cond", index.number, tuple(c.number for c in cases))
            made.append(self.joined(cases, number, eqn.outvars[k].aval.shape, [reach]))
    return made


def _loop_key(self, eqn, operands):
    return self.numbers(eqn.primitive.name, tuple((a.number, a.shape) for a in operands), params_key(eqn))


def _fixpoint(self, key, initial, step):
    """Carry of a loop that holds before and after each step: ``step(carry)`` is the carry after one."""
    carry = [replace(a, number=self.numbers("carry", key, k), shifted=None) for k, a in enumerate(initial)]
    for count in range(10_000):
        for a in carry:
            self.latest[a.number] = a
        new = step(carry)
        after = []
        for old, one in zip(carry, new, strict=True):
            interval = iv.hull(old.interval, one.interval)
            if count >= _ROUNDS:
                interval = iv.widened(old.interval, interval)
            after.append(replace(old, interval=interval, levels=join([old.levels, one.levels])))
        if all(old.same_as(one) for old, one in zip(carry, after, strict=True)):
            return carry
        carry = after
    raise AssertionError("no fixpoint of a loop")  # levels and widened intervals are finitely many


def _scan(self, eqn, operands):
    params = eqn.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, initial, xs = (
        operands[:num_consts],
        operands[num_consts : num_consts + num_carry],
        operands[num_consts + num_carry :],
    )
    key = _loop_key(self, eqn, operands)
    if params["length"] == 0:
        stacked = [
            self._made(iv.ZERO, {}, self.numbers("step", key, k), v.aval.shape)
            for k, v in enumerate(eqn.outvars[num_carry:])
        ]
        return [*initial, *stacked]
    slices = [
        self._made(x.interval, x.levels, self.numbers("row", key, x.number, x.shape), x.shape[1:]) for x in xs
    ]
    step = lambda carry: self.run(params["jaxpr"], [*consts, *carry, *slices])  # noqa: E731
    carry = _fixpoint(self, key, initial, lambda carry: step(carry)[:num_carry])
    outs = step(carry)
    # After at least one step.
    left = [
        self._made(out.interval, out.levels, self.numbers("left", key, k), out.shape)
        for k, out in enumerate(outs[:num_carry])
    ]
    stacked = [
        self._made(out.interval, out.levels, self.numbers("step", key, k), v.aval.shape)
        for k, (out, v) in enumerate(zip(outs[num_carry:], eqn.outvars[num_carry:], strict=True))
    ]
    return [*left, *stacked]


def _while(self, eqn, operands):
    params = eqn.params
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    test_consts, body_consts = operands[:num_test], operands[num_test : num_test + num_body]
    key = _loop_key(self, eqn, operands)

    def stopped(carry):
        """How often the body runs depends on the test."""
        (test,) = self.run(params["cond_jaxpr"], [*test_consts, *carry])
        return self.compose(eqn, [(Level.ANY, test)])

    def step(carry):
        reach = stopped(carry)
        return [
            replace(out, levels=join([out.levels, reach]))
            for out in self.run(params["body_jaxpr"], [*body_consts, *carry])
        ]

    carry = _fixpoint(self, key, operands[num_test + num_body :], step)
    return [
        self._made(a.interval, a.levels, self.numbers("left", key, k), a.shape) for k, a in enumerate(carry)
    ]


CONTROL_FLOW = {
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
