# %% [markdown]
# # 1. A gradient finds its way back
#
# **You will know** how a program takes derivatives of itself: what an operation has to remember, why the way back adds
# up, and how a derivative can be differentiated once more. Everything later in this course stands on that: a paper
# about learning inside learning needs gradients through gradients.
#
# - **Time** 40 minutes with the exercises; running it takes seconds.
# - **You need** NumPy, and the chain rule.
# - **Equations** [A 8], [A 29]. Such a number is that of an equation in the paper's long edition;
#   [PAPER.md](../PAPER.md) lists all 121 of them, with the line of code that computes it, or why there is none.

# %%
import check
import matplotlib.pyplot as plt
import numpy as np

from autograd import Tensor, check_grad, exp, grad, op, tanh
from layers import linear

# %% [markdown]
# ## A slope is a question
#
# How much does y change if I push x a little? The honest way to find out is to push. Here y = x³ at x = 2.

# %%
def y(x):
    return x ** 3


for push in (0.1, 0.01, 0.001):
    print(f"push by {push}: y changes {(y(2 + push) - y(2)) / push:.4f} times as much")

# %% [markdown]
# The answers tend to 12, which is 3x² at x = 2. Pushing to both sides is better: the error then shrinks with the
# square of the push. This is a **central difference**. It needs no calculus, so it will be our referee.

# %%
for push in (0.1, 0.01, 0.001):
    print(f"push by ±{push}: {(y(2 + push) - y(2 - push)) / (2 * push):.7f}")

# %% [markdown]
# Why not always push? A model has millions of weights, and each would need a run of its own. The way back finds all
# slopes in one run.
#
# ## The program remembers what it did
#
# A `Tensor` is an array that remembers how it was computed. Let us compute something from two numbers.

# %%
a = Tensor(np.array(2.0), requires_grad=True)
b = Tensor(np.array(0.25), requires_grad=True)
c = a * b
d = tanh(c)
L = d + a
print(L)
print("L was made by", L.node.name, "from", [t.node.name if t.node else "leaf" for t in L.node.inputs])
print("d was made by", d.node.name, "from", [t.node.name for t in d.node.inputs])
print("c was made by", c.node.name, "from", [t.node.name if t.node else "leaf" for t in c.node.inputs])

# %% [markdown]
# A *leaf* is what you made yourself. From L one can walk back to the leaves, and that is what the way back does.
#
# ## On the way back, every operation answers for itself
#
# Write x̄ for ∂L/∂x: how much L changes if x is pushed. It is called the **cotangent** of x. We begin at the end, where
# L̄ = 1, and go back one operation at a time. Each operation knows the cotangent of its result, and says what the
# cotangents of its inputs are. For z = x·y:
#
#     x̄ = z̄·y,   ȳ = z̄·x
#
# In words: a push of x moves z by y times as much, and z moves L by z̄ times as much. That is the chain rule.
# Let us do it by hand, last operation first.

# %%
L_bar = 1.0
d_bar = L_bar                                  # L = d + a: a sum hands its cotangent on
a_bar = L_bar                                  # ... to both
c_bar = d_bar * (1 - np.tanh(0.5) ** 2)        # d = tanh c, at c = 0.5
b_bar = c_bar * 2.0                            # c = a·b, at a = 2
a_bar = a_bar + c_bar * 0.25                   # ... and at b = 0.25; added to what a has
print(f"by hand     ā = {a_bar:.8f}, b̄ = {b_bar:.8f}")

L.backward()
print(f"by program  ā = {a.grad:.8f}, b̄ = {b.grad:.8f}")

# %% [markdown]
# Look at the last line of the hand calculation: `a` was used twice, in the sum and in the product. L feels a push of
# `a` along both ways, so **what comes back along several ways adds up**. This one sentence is the reason why a weight
# that is used for every word of a text gets one gradient that is a sum over words.

# %% [markdown]
# ## An operation and its rules
#
# This is all it takes to teach the engine an operation: the forward line, and one rule per input. A rule is a
# function of the cotangent `g` of the result. (An operation returns two things: the result, an array, and a tuple
# with the rules. Inside a rule `x` is the tensor, so what the rule computes can be remembered as well.)

# %%
@op
def cube(x):
    """z = x³;  x̄ = z̄·3x²"""
    return x.data ** 3, (lambda g: g * 3 * x * x,)


x = Tensor([1.0, 2.0], requires_grad=True)
cube(x).sum().backward()
print("slopes of x³ at 1 and 2:", x.grad)

# %% [markdown]
# ## Break it, and watch the referee
#
# `check_grad` compares rules with central differences. A right rule agrees to many digits:

# %%
points = np.array([0.5, -1.0, 2.0])
print(f"largest error: {check_grad(cube, points):.1e}")

# %% [markdown]
# And a wrong one is found at once. Someone forgot the 3:

# %%
@op
def careless_cube(x):
    return x.data ** 3, (lambda g: g * x * x,)


try:
    check_grad(careless_cube, points)
except AssertionError as problem:
    print("not right:", problem)

# %% [markdown]
# (Neither number is the slope at 0.5, which is 0.75: the check sends a random cotangent back. But one is three times
# the other.)
#
# A rule that nobody compared with a difference is a rule that nobody checked. The project's own operations are all
# checked like this, to the second order, by `python -m pytest tests/test_autograd.py -k central_differences`.
#
# ### Exercise 1.1: the rules of a product
#
# Write x̄ and ȳ of z = x·y. `g` is the cotangent of z. Replace the dots. If you are not sure, get it wrong on purpose
# first: the checker tells you what it sees.

# %%
def times_rules(g, x, y):
    x_bar = ...
    y_bar = ...
    return x_bar, y_bar


check.times_rules(times_rules)

# %% [markdown]
# ### Exercise 1.2: the rule of tanh
#
# The slope of tanh x is 1 − tanh² x. What is x̄?

# %%
def tanh_rule(g, x):
    return ...


check.tanh_rule(tanh_rule)

# %% [markdown]
# ## A layer: errors times inputs
#
# The commonest layer of a network is y = W x. Its weight has one slope per number. They form a matrix, and it is very
# simple. Push W_ij: only y_i moves, and by x_j times as much. So
#
#     W̄_ij = ȳ_i x_j,   as a matrix   W̄ = ȳ xᵀ                                             [A 8, 29]
#
# Such a product of a column and a row is an **outer product**, `np.outer(ȳ, x)`. ȳ is the **error** that comes back to
# the layer; x is what it saw. Keep this formula: the next lesson begins with it, and the whole course is about it.
#
# (In the code every token is a row, so that many fit into one array. The same layer then reads y = x Wᵀ. That is what
# `linear(x, W)` computes.)

# %%
rng = np.random.default_rng(0)
W = Tensor(rng.standard_normal((2, 3)), requires_grad=True)
x = rng.standard_normal((1, 3))                # one token, a row
error = np.array([[1.0, -2.0]])
linear(x, W).backward(error)                   # as if this had come back as ȳ
print("W̄ by the engine\n", W.grad.round(4))
print("error times input\n", np.outer(error[0], x[0]).round(4))

# %% [markdown]
# ### Exercise 1.3: the rules of a layer
#
# Now five tokens at once: `x` has one row per token, y = x Wᵀ, and `g` has one row per token, too. Write x̄ and W̄.
# Every token has its own outer product, and what comes back along several ways adds up. (Shapes help: W̄ has the shape
# of W. One matrix product does all tokens.)

# %%
def linear_rules(g, x, W):
    x_bar = ...
    W_bar = ...
    return x_bar, W_bar


check.linear_rules(linear_rules)

# %% [markdown]
# ### Exercise 1.4: what is used by all hears from all
#
# y = x + b, where x has one row per token and b is one vector, added to every row. What is b̄?

# %%
def bias_rule(g):
    return ...


check.bias_rule(bias_rule)

# %% [markdown]
# ## The derivative of a derivative
#
# The rules above were written with tensors: `g * 3 * x * x` is a computation like any other. So the way back can be
# remembered as well, and walked back again. `grad(…, create_graph=True)` does that: what it returns has a history.

# %%
x = Tensor(np.linspace(-3, 3, 121), requires_grad=True)
z = tanh(x)
(first,) = grad(z.sum(), [x], create_graph=True)
(second,) = grad(first.sum(), [x])

plt.plot(x.data, z.data, label="tanh x")
plt.plot(x.data, first.data, label="its slope")
plt.plot(x.data, second.data, label="the slope of its slope")
plt.axhline(0, color="grey", linewidth=0.5)
plt.legend()
plt.xlabel("x")
plt.show()

# %% [markdown]
# (`grad` returns a tuple with a slope for each of the inputs; `(first,)` takes it out. Why the sums? `grad` begins at
# one number. The i-th number of z depends on the i-th of x only, so the sum has all slopes side by side.)
#
# Read the picture from left to right: where tanh is steepest, its slope has a top, and the slope of the slope goes
# through zero.
#
# ### Exercise 1.5: a second derivative
#
# `f` is a function of tensors, `x` an array. Return the array f″(x). All you need stands in the cell above. (If it
# stops since something "depends on nothing requiring gradients", then the first way back has kept no history.)

# %%
def second_derivative(f, x):
    x = Tensor(x, requires_grad=True)
    (first,) = ...
    (second,) = ...
    return second.data


check.second_derivative(second_derivative)

# %% [markdown]
# ## What it is for: a gradient through a step of learning
#
# Here is a loss with its lowest point at w = 1, and a step of gradient descent on it. How good is the step? That
# depends on its size η. Since the step is a computation, we can ask how much the loss *after* the step changes if η
# is pushed.

# %%
def loss(w):
    return exp(w - 1.0) + exp(1.0 - w)


def after_a_step(eta):
    w = Tensor([3.0], requires_grad=True)
    (slope,) = grad(loss(w), [w], create_graph=True)
    return loss(w - eta * slope)               # the loss where the step has led


etas = np.linspace(0, 0.6, 61)
plt.plot(etas, [after_a_step(e).item() for e in etas])
for at in (0.05, 0.2, 0.45):
    eta = Tensor(at, requires_grad=True)
    reached = after_a_step(eta)
    (slope,) = grad(reached, [eta])
    ends = np.array([at - 0.05, at + 0.05])
    plt.plot(ends, reached.item() + slope.item() * (ends - at), color="C1", linewidth=3)
plt.xlabel("η, the size of the step")
plt.ylabel("loss after the step")
plt.show()

# %% [markdown]
# The thick lines are slopes that the engine found *through* the step. Where the slope is negative a larger η would
# have been better; beyond the valley a smaller one. So η itself can be learned, by gradient descent on what the step
# leads to. In the models to come, memories take such steps at every token, and where they start is learned by a
# gradient through all of them.
#
# ## What you know now
#
# - An operation remembers its inputs; on the way back it turns the cotangent of its result into those of its inputs.
# - What comes back along several ways adds up.
# - The gradient of a layer is error times input, an outer product: W̄ = ȳ xᵀ.
# - Rules are computations; they can be differentiated, too, so one can learn *through* learning.
#
# The engine of this project is [autograd.py](../autograd.py), and `python autograd.py` prints a small graph.
# Next: [a weight is a memory](2_weight.ipynb).
