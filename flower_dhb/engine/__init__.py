"""The engine: all agents of a network on one machine, vectorized.

problem = Supervised(make_model("mlp", seed=0), x, y, parts)
engine = Engine(problem, Topology.ring(16), HeavyBall(), learning_rate=0.1)
engine.run(100)
"""
