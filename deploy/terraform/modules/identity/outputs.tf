output "execution_role_arn" {
  description = "What the platform starts tasks as."
  value       = aws_iam_role.execution.arn
}

output "task_role_arn" {
  description = "What the task itself is."
  value       = aws_iam_role.task.arn
}

output "deploy_role_arn" {
  description = "What the pipeline is; null where no repository was named."
  value       = one(aws_iam_role.deploy[*].arn)
}
