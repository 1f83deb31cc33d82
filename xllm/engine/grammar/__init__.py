"""Reserved for structured output: grammar states that clear bits of a StepMask. See ports.NullGrammar."""
